"""The configuration files of a node: containerd, CNI, kubelet, kube-proxy, crictl. Pure text, no I/O.

What is set beyond the defaults is what a node inside another machine needs, or what keeps tests short.
"""

import json
from pathlib import Path

from tests.testbed.layout import Layout

PAUSE_IMAGE = "testbed.imageprepull.io/pause:1"
SOCKET = "/run/containerd/containerd.sock"
ZONES = ("zone-1", "zone-2")
INSIDE = Path("/etc/imageprepull-testbed")
"""Where a node sees its own certificates and kubelet configuration."""


def containerd_16(*, restrict_oom: bool) -> str:
    """Debian's 1.6: configuration version 2."""
    return f"""\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = {str(restrict_oom).lower()}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
"""


def containerd_2(*, restrict_oom: bool) -> str:
    """containerd 2.x: configuration version 3, where CRI is two plugins."""
    return f"""\
version = 3
[plugins."io.containerd.cri.v1.images"]
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE_IMAGE}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = {str(restrict_oom).lower()}
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


def hosts_toml(registry: str) -> str:
    """certs.d entry of the cluster's registry. containerd 1.6 refuses a file without a [host] table."""
    return (
        f'server = "http://{registry}"\n\n[host."http://{registry}"]\n  capabilities = ["pull", "resolve"]\n'
    )


def cni(layout: Layout, index: int) -> str:
    """A bridge in the node; addresses are forgotten at a reboot, since /run is."""
    addresses = {
        "type": "host-local",
        "dataDir": "/run/cni/networks",
        "ranges": [[{"subnet": layout.pod_subnet(index)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}, indent=1)


def crictl() -> str:
    """/etc/crictl.yaml."""
    return f"runtime-endpoint: unix://{SOCKET}\nimage-endpoint: unix://{SOCKET}\ntimeout: 30\n"


def kubelet(layout: Layout, node: str, ip: str) -> str:
    """KubeletConfiguration as JSON, which is YAML."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ip,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(INSIDE / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(INSIDE / "kubelet.crt"),
        "tlsPrivateKeyFile": str(INSIDE / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}/{node}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "resolvConf": str(INSIDE / "resolv.conf"),
        "healthzBindAddress": "127.0.0.1",
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 20,
        "syncFrequency": "10s",
        "shutdownGracePeriod": "0s",
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        # The machine's settings are not this kubelet's to change.
        "protectKernelDefaults": False,
    }
    return json.dumps(config, indent=1)


def kube_proxy(layout: Layout, node: str) -> str:
    """KubeProxyConfiguration as JSON. The connection table belongs to the machine: it is left as it is."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": str(INSIDE / "kube-proxy.kubeconfig")},
        "clusterCIDR": f"10.{100 + layout.subnet}.0.0/16",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "0.2s"},
    }
    return json.dumps(config, indent=1)

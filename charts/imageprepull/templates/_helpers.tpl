{{- define "imageprepull.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "imageprepull.selector" -}}
app.kubernetes.io/name: imageprepull
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- /* Call with (dict "root" $ "component" "operator"); the component may be empty. */ -}}
{{- define "imageprepull.labels" -}}
app.kubernetes.io/name: imageprepull
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/part-of: imageprepull
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "imageprepull.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The runtime's paths: what is set, else what the preset says. */ -}}
{{- define "imageprepull.runtime" -}}
{{- $presets := dict
  "containerd" (dict
    "socket" "/run/containerd/containerd.sock"
    "root" "/var/lib/containerd"
    "hostsDir" "/etc/containerd/certs.d")
  "k3s" (dict
    "socket" "/run/k3s/containerd/containerd.sock"
    "root" "/var/lib/rancher/k3s/agent/containerd"
    "hostsDir" "/var/lib/rancher/k3s/agent/etc/containerd/certs.d") -}}
{{- $preset := get $presets .Values.runtime.preset -}}
{{- dict
  "socket" (.Values.runtime.socket | default $preset.socket)
  "root" (.Values.runtime.root | default $preset.root)
  "hostsDir" (.Values.runtime.hostsDir | default $preset.hostsDir) | toJson -}}
{{- end -}}

{{- /* hosts.toml by registry: what was given, and one for each registry that speaks plain http. */ -}}
{{- define "imageprepull.hosts" -}}
{{- $hosts := deepCopy .Values.registry.hosts -}}
{{- range .Values.registry.plainHTTP -}}
{{- $url := printf "http://%s" . -}}
{{- $_ := set $hosts . (printf "server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n" $url $url) -}}
{{- end -}}
{{- toJson $hosts -}}
{{- end -}}

{{- /* A registry as containerd spells its folder: host_port_ */ -}}
{{- define "imageprepull.hostsFolder" -}}
{{- if contains ":" . -}}{{ replace ":" "_" . }}_{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{- /* What the uninstall hook may do, before it starts and no longer than it takes. */ -}}
{{- define "imageprepull.uninstallRights" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: "-5"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{- /* The variables that registry/proxies.py reads. `$` is doubled, or the kubelet would expand what a password has. */ -}}
{{- define "imageprepull.proxyEnv" -}}
{{- if or .Values.proxy.http .Values.proxy.https -}}
{{- with .Values.proxy.http }}
- {name: HTTP_PROXY, value: {{ replace "$" "$$" . | quote }}}
{{- end }}
{{- with .Values.proxy.https }}
- {name: HTTPS_PROXY, value: {{ replace "$" "$$" . | quote }}}
{{- end }}
# The kubelet puts the API server's address in: a library that reads these variables must not take it elsewhere.
- {name: NO_PROXY, value: {{ printf "$(KUBERNETES_SERVICE_HOST),.svc%s" (.Values.proxy.noProxy | empty | ternary "" (printf ",%s" (replace "$" "$$" .Values.proxy.noProxy))) | quote }}}
{{- end -}}
{{- end -}}

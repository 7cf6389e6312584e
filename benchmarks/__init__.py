"""How fast is a pull, and what does it cost: `make bench`, or `python -m benchmarks --help`.

Every contender pulls the same image from the same registry onto an ext4 that was made for this one pull. Contenders
alternate within a round, and the table has the medians over the rounds.

How to read the table
    ready     seconds from exec of the pull command until the CRI has the image and its topmost snapshot is committed,
              or until the command's own exit if that comes first: from then on a pod starts without a pull
    done      seconds from exec until the compressed blobs are kept too: of containerd when the command has ended, of
              `imageprepull` by its own count, since its command goes on and writes the layers to disk (syncfs)
    on disk   the command has ended, and a syncfs of the file system after it: what both have when a power cut costs
              nothing
    CPU       seconds of user and system time of daemon, command and all their children between exec and exit.
              "of daemon" is containerd's part with the decompressors that it starts. The registry, the kernel's write-back and everything else are not in it
    other     CPU seconds that the machine spent on anything else but contender and registry meanwhile, the
              kernel's own threads included. Much more than other runs have: somebody else was working, distrust
              the wall clock, trust the CPU
    ours/…    ours divided by theirs: 0.40 means that ours took 40 % of what they took

What makes figures wrong, and is seen to here: a file system with a history (ext4 creates files up to ten times slower
for minutes after a large delete), a large tmpfs (it shrinks the limits for dirty pages; refused), a registry that
reads from disk (its blobs are read into memory before each run), cold binaries (a tiny image is pulled first), igzip
or unpigz that happen to be in the daemon's PATH (it gets a PATH of its own), a busy machine (refused, or --force).

Where things are
    corpus, layers, images   the images, made once from this machine's own files and kept in the cache
    static_registry, registry, link   who serves them, and the slow link
    disk, accounting, watch, machine  a fresh disk, CPU seconds, when the CRI answers, the state of the machine
    daemon, contenders, trial, plan   who pulls, one pull, and all of them in order
    report     medians, ratios, the table and the JSON
    neighbour, fsync_loop   what a pull does to others on the same disk: `python -m benchmarks.neighbour`
    limits     what the machine can do at all: inflate, hash, create and write, per core
"""

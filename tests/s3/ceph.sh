#!/usr/bin/env bash
# A real S3 server on loopback: Ceph's RADOS Gateway over one monitor and one OSD, from Debian's packages.
#   ceph.sh install              the packages, if they are absent and apt-get may install them
#   ceph.sh up DIR PORT          an empty server at http://127.0.0.1:PORT (also uses PORT+10000 to PORT+10110);
#                                prints its access key and its secret key
#   ceph.sh kill DIR             kill -9 of all its processes, as a machine that loses power
#   ceph.sh start DIR PORT       starts them again, on the same data
# Nothing outside DIR is touched, and only processes that were started with its configuration are ended.
set -euo pipefail
export LC_ALL=C

packages=(radosgw ceph-mon ceph-osd ceph-common)
access=decant-test-key
secret=decant-test-secret

say() { echo "ceph.sh: $*" >&2; }

install() {
    command -v radosgw ceph-mon ceph-osd ceph >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "needs ${packages[*]}: install them, or run this as root where there is apt-get"
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

configure() {
    local port=$1
    mkdir -p "$dir"/{mon,osd,rgw,log,run}
    cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$((port + 10000)),v1:127.0.0.1:$((port + 10001))]
mon initial members = a
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind port min = $((port + 10010))
ms bind port max = $((port + 10110))
ms mon client mode = crc
# One machine's cluster trusts itself; the gateway checks every signature.
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = bluestore
osd op num shards = 2
osd memory target = 939524096
bluestore block size = 4294967296
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 1
mon osd min in ratio = 0
paxos propose interval = 0.02
paxos min wait = 0.01
debug default = 0
mon data = $dir/mon
osd data = $dir/osd
rgw data = $dir/rgw
run dir = $dir/run
log file = $dir/log/\$name.log
admin socket = $dir/run/\$name.asok
pid file = $dir/run/\$name.pid
rgw frontends = beast endpoint=127.0.0.1:$port
rgw dns name = 127.0.0.1
rgw thread pool size = 32
rgw enable usage log = false
rgw enable ops log = false
CONF
}

create() {
    local fsid osd
    rm -rf "${dir:?}"
    configure "$1"
    fsid=$(sed -n 's/^fsid = //p' "$dir/ceph.conf")
    osd=$(cat /proc/sys/kernel/random/uuid)
    monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$(($1 + 10000)),v1:127.0.0.1:$(($1 + 10001))]" \
        "$dir/monmap" >/dev/null
    ceph-mon -c "$dir/ceph.conf" -i a --mkfs --monmap "$dir/monmap"
    ceph-mon -c "$dir/ceph.conf" -i a
    ceph -c "$dir/ceph.conf" osd new "$osd" >/dev/null
    ceph-osd -c "$dir/ceph.conf" -i 0 --mkfs --osd-uuid "$osd" >/dev/null 2>&1
    ceph-osd -c "$dir/ceph.conf" -i 0 2>/dev/null
    radosgw-admin -c "$dir/ceph.conf" user create --uid=decant --display-name=decant \
        --access-key="$access" --secret-key="$secret" >/dev/null
}

gateway() {
    radosgw -c "$dir/ceph.conf" -n client.rgw
    for _ in $(seq 600); do
        curl -sf -o /dev/null "http://127.0.0.1:$1" && return
        sleep 0.1
    done
    say "the gateway did not answer on port $1 within a minute: see $dir/log"
    exit 1
}

processes() {
    local pid
    for pid in $(cat "$dir"/run/*.pid 2>/dev/null); do
        if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "-c $dir/ceph.conf"; then echo "$pid"; fi
    done
}

end() {
    local pid
    for pid in $(processes); do kill -9 "$pid" || true; done
    for _ in $(seq 100); do
        [ -z "$(processes)" ] && return
        sleep 0.1
    done
}

command=${1:-}
dir=$(realpath -m "${2:-.}")
case "$command $#" in
"install 1") install ;;
"up 3")
    end
    create "$3"
    gateway "$3"
    echo "$access $secret"
    ;;
"kill 2") end ;;
"start 3")
    ceph-mon -c "$dir/ceph.conf" -i a
    ceph-osd -c "$dir/ceph.conf" -i 0 2>/dev/null
    gateway "$3"
    ;;
*)
    sed -n 's/^# \{0,1\}//p' "$0" | sed 1d
    exit 2
    ;;
esac

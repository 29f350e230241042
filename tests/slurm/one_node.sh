#!/usr/bin/env bash
# A private SLURM of one node on this machine: for the tests, and to try a sweep at home.
#
#   eval "$(tests/slurm/one_node.sh start)"     start it; the shell then knows where it is (SLURM_CONF)
#   tests/slurm/one_node.sh status              what runs
#   tests/slurm/one_node.sh stop                cancel its jobs, stop it, leave nothing behind
#
# It needs Debian's packages slurm-wlm and munge and installs nothing itself.  Root or not; a SLURM that is there
# already is not touched.  Its folder: SPEECH2IMAGE_SLURM, else speech2image-slurm-<user> below TMPDIR or /tmp.
set -u
PATH=$PATH:/usr/sbin:/sbin
home=${SPEECH2IMAGE_SLURM:-${TMPDIR:-/tmp}/speech2image-slurm-$(id -un)}
conf=$home/slurm.conf
tell() { echo "one_node.sh: $*" >&2; }

need_packages() {
    local command missing=
    for command in munged slurmctld slurmd sbatch srun; do
        command -v $command >/dev/null || missing="$missing $command"
    done
    [ -z "$missing" ] && return
    tell "not on this machine:$missing"
    tell "type: apt-get install slurm-wlm munge"
    exit 2
}

# Ports nobody listens on, beginning far from SLURM's own 6817 and 6818.
free_port() {
    local port=$1
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 2)); done
    echo "$port"
}

write_conf() {
    local name memory
    name=$(hostname -s)
    memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.95)}' /proc/meminfo)
    cat >"$conf" <<EOF
ClusterName=speech2image
SlurmctldHost=$name(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$(free_port 26817)
SlurmdPort=$(free_port 26818)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket=$home/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmctldLogFile=$home/slurmctld.log
SlurmdLogFile=$home/slurmd.log
PlugStackConfig=$home/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=3600
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$memory State=UNKNOWN
PartitionName=home Nodes=$name Default=YES MaxTime=INFINITE State=UP
EOF
}

# Processes of jobs of this SLURM, and the helpers that hold them.
job_processes() {
    local process
    for process in /proc/[0-9]*; do
        if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qx "SLURM_CONF=$conf"; then
            if [ "$(cat "$process/comm" 2>/dev/null)" = slurmstepd ] ||
                tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -q '^SLURM_JOB_ID='; then
                echo "${process#/proc/}"
            fi
        fi
    done
}

# The process of a daemon, if its pid file tells the truth.
daemon_pid() {
    local pid
    pid=$(cat "$home/$1.pid" 2>/dev/null) || return 1
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] && ! is_gone "$pid" && echo "$pid"
}

# Wait at most $1 tenths of a second for a command to succeed.
within() {
    local left=$1
    shift
    until "$@"; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        sleep 0.1
    done
}
is_up() { daemon_pid munged >/dev/null && daemon_pid slurmctld >/dev/null && daemon_pid slurmd >/dev/null; }
is_gone() { ! kill -0 "$1" 2>/dev/null || grep -q '^State:.*[ZX]' "/proc/$1/status" 2>/dev/null; }
has_no_processes() {
    local found pid
    found=$(job_processes)
    for pid in $found; do kill -9 "$pid" 2>/dev/null; done
    [ -z "$found" ]
}
is_idle() { [ -n "$(sinfo -h -t idle,mixed,allocated -o %n 2>/dev/null)" ]; }
has_no_jobs() { [ -z "$(squeue -h 2>/dev/null)" ]; }

end_all() {
    local name pid
    export SLURM_CONF=$conf
    if daemon_pid slurmctld >/dev/null && daemon_pid munged >/dev/null; then
        scancel --full --state=PENDING --user="$(id -un)" 2>/dev/null
        scancel --full --user="$(id -un)" 2>/dev/null
        scancel --user="$(id -un)" 2>/dev/null
        within 200 has_no_jobs
    fi
    for name in slurmctld slurmd munged; do
        pid=$(daemon_pid $name) || continue
        kill "$pid"
        within 100 is_gone "$pid" || kill -9 "$pid"
    done
    within 50 has_no_processes
}

start() {
    need_packages
    if is_up; then
        tell "runs already"
        echo "export SLURM_CONF=$conf"
        return
    fi
    [ -d "$home" ] && end_all # what a crash has left
    rm -rf "$home"
    mkdir -p "$home/state" "$home/spool" && chmod 755 "$home" || exit 2
    (umask 077 && head -c 1024 /dev/urandom >"$home/munge.key")
    : >"$home/plugstack.conf"
    write_conf
    export SLURM_CONF=$conf
    munged --force --key-file="$home/munge.key" --socket="$home/munge.socket" --pid-file="$home/munged.pid" \
        --log-file="$home/munged.log" --seed-file="$home/munged.seed" --num-threads=2 >"$home/start.log" 2>&1 &&
        slurmctld -c -f "$conf" >>"$home/start.log" 2>&1 && slurmd -f "$conf" >>"$home/start.log" 2>&1
    if ! within 300 is_idle; then
        tell "it did not start; what it said:"
        tail -n 5 "$home"/*.log >&2
        end_all
        exit 1
    fi
    tell "one node with $(nproc --all) cores runs; logs and settings are in $home"
    echo "export SLURM_CONF=$conf"
}

stop() {
    if [ ! -d "$home" ]; then
        tell "nothing to stop in $home"
        return
    fi
    end_all
    rm -rf "$home"
    tell "stopped; type: unset SLURM_CONF"
}

status() {
    export SLURM_CONF=$conf
    if ! is_up; then
        tell "does not run; type: eval \"\$(tests/slurm/one_node.sh start)\""
        exit 1
    fi
    sinfo
    squeue
    echo "export SLURM_CONF=$conf"
}

case ${1:-} in
start | stop | status) "$1" ;;
*)
    tell "type: one_node.sh start, stop or status"
    exit 2
    ;;
esac

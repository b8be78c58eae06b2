#!/bin/sh
# A toy scheduler: two jobs at a time, on this machine. Its jobs are folders of $TOY_SPOOL.
#   sh toy.sh toysub NAME FOLDER OUTPUT SCRIPT    prints "toy job NUMBER"
#   sh toy.sh toystat                             prints "NUMBER STATE NAME" for each job, those that are over too
#   sh toy.sh toydel NUMBER NAME                  ends a job of this number and, unless it is "", of this name
set -u
mkdir -p "$TOY_SPOOL"
become() { # JOB STATE, which nobody may read half
    echo "$2" >"$1/state.new"
    mv "$1/state.new" "$1/state"
}
command=$1
shift
case $command in
toysub)
    number=1
    until mkdir "$TOY_SPOOL/$number" 2>/dev/null; do number=$((number + 1)); done
    echo "$1" >"$TOY_SPOOL/$number/name"
    become "$TOY_SPOOL/$number" waits
    cd "$2" || exit 1
    setsid sh "$0" run "$TOY_SPOOL/$number" "$3" "$4" </dev/null >/dev/null 2>&1 &
    echo "toy job $number"
    ;;
run)
    until slot=$TOY_SPOOL/first.slot && mkdir "$slot" || { slot=$TOY_SPOOL/second.slot && mkdir "$slot"; }; do
        [ -e "$1/deleted" ] && become "$1" deleted && exit
        sleep 0.05
    done
    sh "$3" >>"$2" 2>&1 &
    echo $! >"$1/process"
    become "$1" runs
    [ -e "$1/deleted" ] && kill $!
    wait $!
    rmdir "$slot"
    if [ -e "$1/deleted" ]; then become "$1" deleted; else become "$1" over; fi
    ;;
toystat)
    for job in "$TOY_SPOOL"/[0-9]*/; do
        [ -e "$job/state" ] && echo "$(basename "$job") $(cat "$job/state") $(cat "$job/name")"
    done
    true
    ;;
toydel)
    [ -z "$2" ] || [ "$(cat "$TOY_SPOOL/$1/name")" = "$2" ] || exit 1
    : >"$TOY_SPOOL/$1/deleted"
    if [ -e "$TOY_SPOOL/$1/process" ]; then kill "$(cat "$TOY_SPOOL/$1/process")"; fi
    ;;
esac

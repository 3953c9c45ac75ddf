#!/usr/bin/env bash
# Start HAProxy with the replicas that the engine's DNS knows, as a reload does with those that the worker before knew.
# Its own resolvers answer a moment after it has begun to listen, and who asked in between would be refused.
set -euo pipefail
state=$1 config=$2
shift 2

# A line for each replica behind a server-template of the config, as `show servers state` has it.
known() {
    local backend=$1 host=${2%:*} port=${2#*:} number=0 ip kind
    # An address comes three times, once a kind of socket. A name that nobody has may be asked for elsewhere, for long.
    while read -r ip kind _; do
        [[ $kind == STREAM ]] || continue
        number=$((number + 1))
        echo "0 $backend $number replica$number $ip 2 0 1 1 0 1 0 2 0 0 0 0 $host $port - 0 0 - - 0"
    done < <(timeout 2 getent ahostsv4 "$host" || true)
}

{
    echo 1
    echo '# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight' \
        'srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state' \
        'bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr' \
        'srv_agent_addr srv_agent_port'
    # Of the newest generation; while it has none, as in a rotation, of the one before.
    while read -r word name _ address _; do
        case $word in
            backend) backend=$name ;;
            server-template)
                found=$(known "$backend" "$address")
                [[ -z $found ]] || { echo "$found" && break; }
                ;;
        esac
    done <"$config"
} >"$state"
exec "$@"

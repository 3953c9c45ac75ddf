#!/usr/bin/env bash
# Start HAProxy with the replicas that the engine's DNS knows, as a reload does with those that the worker before knew.
# Its own resolvers answer a moment after it has begun to listen, and who asked in between would be refused.
set -euo pipefail
state=$1 config=$2
shift 2

backend=
while read -r word name _ address _ resolvers; do
    case "$word $resolvers" in
        'backend '*) backend=$name ;;
        'server-template newest') break ;;
    esac
done <"$config"

{
    echo 1
    echo '# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight' \
        'srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state' \
        'bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr' \
        'srv_agent_addr srv_agent_port'
    number=0
    # An address, and how it was found: each comes three times, once a kind of socket.
    while read -r ip kind _; do
        [[ $kind == STREAM ]] || continue
        number=$((number + 1))
        echo "0 $backend $number replica$number $ip 2 0 1 1 0 1 0 2 0 0 0 0 ${address%:*} ${address#*:} - 0 0 - - 0"
    done < <(timeout 2 getent ahostsv4 "${address%:*}" || true)
} >"$state"
exec "$@"

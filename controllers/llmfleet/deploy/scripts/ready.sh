# A follower is ready once past the start gate; rank 0 when it serves ($0 is the program that asks it).
[ -e "${LLMFLEET_RUN:-/run/llmfleet}/restarted" ] && exit 1
[ "$LLMFLEET_RANK" = 0 ] && exec python3 -IS -c "$0"
[ -e "${LLMFLEET_RUN:-/run/llmfleet}/released" ]

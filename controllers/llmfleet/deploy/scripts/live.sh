# Only rank 0 has an engine loop to watch; a follower's process is its life ($0 is the program that watches).
[ "$LLMFLEET_RANK" = 0 ] && exec python3 -IS -c "$0"
exit 0

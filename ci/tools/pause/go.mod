module llmfleet/ci/tools/pause

go 1.26.0

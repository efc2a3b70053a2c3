module llmfleet/ci/tools/probe

go 1.26.0

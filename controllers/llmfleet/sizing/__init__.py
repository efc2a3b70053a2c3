"""What a model needs on a GPU: memory, instances, latency, cost; the arithmetic behind `llmfleet plan`."""

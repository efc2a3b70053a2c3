"""Why a fleet has its size and what would change it; behind `llmfleet explain`."""

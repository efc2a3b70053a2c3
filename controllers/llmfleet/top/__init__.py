"""A live table of fleets and engines; behind `llmfleet top`."""

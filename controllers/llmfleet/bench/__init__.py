"""`llmfleet bench`: closed-loop load against an OpenAI-compatible endpoint, and a verdict on what was measured."""

"""What is wrong with an install and how to mend it; behind `llmfleet doctor`."""

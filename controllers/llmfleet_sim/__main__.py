"""`python -m llmfleet_sim` is the same entry point as `vllm` in the image."""

from llmfleet_sim.cli import main

if __name__ == "__main__":
    main()

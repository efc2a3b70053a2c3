"""`python -m llmfleet`: the same entry point as the `llmfleet` console script."""

from llmfleet.cli import main

if __name__ == "__main__":
    main()

"""Style and script of the page, as they are sent."""

"""HTTP/1.1 as uvicorn speaks it."""

"""Train and examine the starter model: `python -m tools.starter build` and `… exam`."""

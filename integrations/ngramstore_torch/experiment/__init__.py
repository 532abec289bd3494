"""Models compared on held-out text: evaluation, presets, one comparison from end to end, the demo."""

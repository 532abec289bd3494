"""From token ids to rows: matching, the row cache, reading and dequantizing, and the handle that users hold."""

"""What the benchmarks share: clocks, floors, competitors, reports."""

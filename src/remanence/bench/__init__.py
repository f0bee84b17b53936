"""Side-by-side measurements of what things cost; `report` is the shape that all of them print."""

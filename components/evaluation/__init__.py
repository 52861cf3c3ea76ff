"""What the step evaluate is made of: the held-back rows, measuring, what the gate is told, the bundle's papers. No step itself."""

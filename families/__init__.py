"""What is modelled: one folder per model family. Pure: imports no pipeline engine, tracker, server or database."""

"""Esteira: a model release you can prove. Importing this package does nothing else."""

__version__ = "0.1.0"

"""What turns raw rows into numbers: the table contract, the typed decoder, fitted preparation."""

"""Exact ONNX graphs for tables, built by hand: trees, linear models, constants; no converter library is used.

Every graph takes `x`, float32 of shape (rows, features), where NaN is missing and category columns hold codes, and gives
`y`, double: probabilities of shape (rows, classes), or values of shape (rows,). `onnx` is imported here, so nothing that
answers requests imports more of this package than `session`.
"""

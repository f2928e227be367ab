"""Training data: streams of pairs, and columns computed once and kept"""

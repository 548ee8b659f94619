"""Plots."""


def draw(rows, folder):
    pass

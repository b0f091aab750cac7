"""Implementations of ``Operations``, one a kind of device and compiler."""

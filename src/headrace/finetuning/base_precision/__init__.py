"""The frozen base model in bf16, FP8 or 4-bit: conversion, loading layer by layer."""

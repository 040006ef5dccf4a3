"""Steps that change a model: conversion, quantization, pruning, distillation. See `registry`."""

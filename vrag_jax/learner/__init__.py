"""Losses, advantages, optimiser steps, batches and checkpoints."""

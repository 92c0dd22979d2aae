"""Policies, critics and reward models on transformers backbones."""

"""Kubernetes-native training pipeline for video deepfake detection."""

__version__ = "0.1.0"

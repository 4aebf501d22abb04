"""Measures of sound and of features: functions of tensors."""

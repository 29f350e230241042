"""Speech encoders, `SpeechBatch` to `Condition`, and the synthesizers that speak captions."""

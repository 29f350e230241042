"""Image encoders: image branches and teachers of speech encoders, probes of metrics."""

"""Audio files and acoustic features: decode, resample, published front ends, augmentation."""

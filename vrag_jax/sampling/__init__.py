"""KV-cached sampling from the policy and the cache of image features."""

"""PageWorld: generated pages whose values can only be read after a crop."""

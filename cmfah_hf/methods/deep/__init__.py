"""Deep methods that CMFAH is compared with: objectives of towers over one feature, `[feature-hash]`."""

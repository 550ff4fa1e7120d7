"""Models of other libraries with the fused operators, against themselves without."""

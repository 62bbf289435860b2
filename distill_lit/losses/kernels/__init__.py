"""The element-wise part of the fused head in Triton: what it computes (`terms`), the losses and what is watched."""

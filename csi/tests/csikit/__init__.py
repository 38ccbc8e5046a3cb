"""What several test modules of the CSI driver need."""

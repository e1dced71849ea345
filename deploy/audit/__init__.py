"""Audits of the packages and manifests of this project, and explanations of findings. Installs and serves nothing."""

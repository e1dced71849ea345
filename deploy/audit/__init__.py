"""What is known against the packages and manifests of this project, and what of it is explained. Installs nothing, serves nothing."""

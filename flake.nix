# Packages and a NixOS module for people who already have Nix. The netboot image itself is made from Debian packages
# by `netboot-image` (docs/design/image.md), so that the builder's image never depends on a Nix builder; `nixosModules` runs
# the same agent, from the same units, on a NixOS machine.
#
# Not covered by our CI, which has neither nixpkgs nor a network to fetch it: see docs/design/image.md, "With NixOS".
{
  description = "Barnraiser: a community Nix builder";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.11";

  outputs =
    { self, nixpkgs }:
    let
      # The guest's VMM has its architecture-specific part for x86_64 only, so far.
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      inherit (nixpkgs) lib;

      # One crate of the workspace. Tests are run by `make test`: they need root, KVM or QEMU, and Debian's mirror.
      crate =
        rustPlatform: pname: extra:
        rustPlatform.buildRustPackage (
          {
            inherit pname;
            version = "0.1.0";
            src = lib.fileset.toSource {
              root = ./.;
              fileset = lib.fileset.unions [
                ./Cargo.toml
                ./Cargo.lock
                ./access-manager
                ./builder-agent
                ./image
                ./tests
              ];
            };
            cargoLock.lockFile = ./Cargo.lock;
            cargoBuildFlags = [
              "-p"
              pname
            ];
            doCheck = false;
            meta = {
              mainProgram = pname;
              license = with lib.licenses; [
                mit
                asl20
              ];
              platforms = [ system ];
            };
          }
          // extra
        );
    in
    {
      packages.${system} = rec {
        builder-agent = crate pkgs.rustPlatform "builder-agent" {
          nativeBuildInputs = [
            pkgs.cmake
            pkgs.perl
          ];
        };
        access-manager = crate pkgs.rustPlatform "access-manager" {
          nativeBuildInputs = [ pkgs.pkg-config ];
          buildInputs = [
            pkgs.openssl
            pkgs.zlib
          ];
        };
        netboot-image = crate pkgs.rustPlatform "netboot-image" { };
        # Runs as PID 1 in an empty machine: linked statically, against musl.
        guest = crate pkgs.pkgsStatic.rustPlatform "guest" { };
        default = builder-agent;
      };

      nixosModules.default = import ./image/nixos-module.nix self;

      # A skeleton: the module on top of NixOS's own netboot image. Give it a kernel, an initrd for the micro-VMs
      # (`netboot-image guest`) and a roster, then build `config.system.build.netbootRamdisk` and friends.
      nixosConfigurations.netboot = lib.nixosSystem {
        inherit system;
        modules = [
          "${nixpkgs}/nixos/modules/installer/netboot/netboot-minimal.nix"
          self.nixosModules.default
          {
            services.barnraiser = {
              enable = true;
              guestDirectory = "/persist/guest";
              roster.repository = "https://example.org/our-roster.git";
            };
            # The agent is the only front door.
            services.openssh.enable = lib.mkForce false;
            system.stateVersion = "25.11";
          }
        ];
      };

      devShells.${system}.default = pkgs.mkShell {
        inputsFrom = [
          self.packages.${system}.builder-agent
          self.packages.${system}.access-manager
        ];
        packages = with pkgs; [
          clippy
          rustfmt
          cargo-nextest
          erofs-utils
          bubblewrap
          qemu
          zstd
          xz
          cpio
        ];
      };

      formatter.${system} = pkgs.nixfmt-rfc-style;
    };
}

# The agent on NixOS. The units are the ones of the netboot image (image/rootfs): read from there, so that the two
# cannot drift apart; only paths of programs differ.
self:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.barnraiser;
  ours = self.packages.${pkgs.stdenv.hostPlatform.system};
  toml = pkgs.formats.toml { };
  settings = toml.generate "builder-agent.toml" cfg.settings;

  # The image's units and scripts name programs below /usr/lib/barnraiser; here each gets its store path.
  home = pkgs.runCommand "barnraiser-home" { } ''
    mkdir -p $out
    cp ${./rootfs/usr/lib/barnraiser}/* $out/
    ln -s ${lib.getExe ours.builder-agent} $out/builder-agent
    ln -s ${lib.getExe ours.access-manager} $out/access-manager
    ${lib.optionalString (cfg.roster.baked != null) "cp ${cfg.roster.baked} $out/roster.json"}
    substituteInPlace $out/roster-sync \
      --replace-fail /usr/lib/barnraiser $out
    patchShebangs $out
  '';
  units = pkgs.runCommand "barnraiser-units" { } ''
    mkdir -p $out/lib/systemd/system
    cd ${./rootfs/etc/systemd/system}
    cp builder-agent.service barnraiser-builds.service barnraiser-firewall.service barnraiser-roster.service barnraiser-roster.timer \
      barnraiser-webhook.service barnraiser-sync.path barnraiser-mirrors.service barnraiser-mirrors-now.service \
      barnraiser-mirrors.path $out/lib/systemd/system/
    chmod -R u+w $out
    # The image has git only in the root file system of homes; here it is a package, and other lines hide keys and store.
    sed -i $out/lib/systemd/system/barnraiser-mirrors.service \
      -e '/x2dgit\.mount$/d' -e '/^ConditionPathExists=/d' -e '/^RootDirectory=/d' -e '/^MountAPIVFS=/d' \
      -e '/^TemporaryFileSystem=/d' -e '/^BindReadOnlyPaths=/d' -e '/^Environment=PATH=/d' \
      -e 's|/usr/local/bin/builder-agent|/usr/lib/barnraiser/builder-agent|'
    substituteInPlace $out/lib/systemd/system/*.service --replace-quiet /usr/lib/barnraiser ${home} \
      --replace-quiet /bin/true ${pkgs.coreutils}/bin/true \
      --replace-quiet /bin/kill ${pkgs.util-linux}/bin/kill \
      --replace-quiet /bin/systemctl ${pkgs.systemd}/bin/systemctl
  '';
  # Options that name a file: one that may be in the Nix store, which everybody reads, and one that may not.
  named =
    type: description:
    lib.mkOption {
      type = lib.types.nullOr type;
      default = null;
      inherit description;
    };
  file = named lib.types.path;
  secret = what: named lib.types.str "${what} Not in the Nix store, which everybody reads.";

  # Of roster-sync, and gpgv of access-manager.
  tools = [
    pkgs.coreutils
    pkgs.gnupg
  ];
  roster-key = lib.optional (
    cfg.roster.sshKeyFile != null
  ) "barnraiser.roster-ssh-key:${cfg.roster.sshKeyFile}";
in
{
  options.services.barnraiser = {
    enable = lib.mkEnableOption "the Barnraiser community builder";
    guestDirectory = lib.mkOption {
      type = lib.types.path;
      description = "Folder made by `netboot-image guest`: vmlinux, initrd, guest and busybox.";
    };
    roster = {
      repository = lib.mkOption {
        type = lib.types.str;
        default = "";
        description = "Git repository with users.nix at its top. Empty: only the baked roster counts.";
      };
      branch = lib.mkOption {
        type = lib.types.str;
        default = "main";
      };
      host = lib.mkOption {
        type = lib.types.str;
        default = "";
        description = "Name of this machine in `hosts` of a roster for several boxes. Empty: members of other boxes get in too.";
      };
      fallback = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether `baked` serves until the repository was read for the first time.";
      };
      allowedSigners = file "Commits must be signed by one of these ssh keys (ssh-keygen(1), ALLOWED SIGNERS).";
      webhook = {
        listen = lib.mkOption {
          type = lib.types.str;
          default = "0.0.0.0:8080";
        };
        secretFile = secret "File with the secrets of webhooks, one in a line.";
      };
      mergeSigners = file "Further ssh keys, which may sign merge commits only.";
      gpgKeyring = file "Commits may also be signed by one of these OpenPGP keys (a keyring of gpgv(1)).";
      mergeGpgKeyring = file "Further OpenPGP keys, which may sign merge commits only.";
      knownHosts = file "Host keys of a repository that is read over ssh (ssh-keygen(1), known_hosts).";
      sshKeyFile = secret "File with the private key for a repository that is read over ssh.";
      baked = file "roster.json to fall back to when the repository cannot be reached.";
    };
    settings = lib.mkOption {
      inherit (toml) type;
      default = { };
      description = "builder-agent.toml; see docs/reference/settings.md.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = !config.services.openssh.enable || !(lib.elem 22 config.services.openssh.ports);
        message = "services.barnraiser listens on port 22 itself; move or disable services.openssh";
      }
    ];
    services.barnraiser.settings = {
      listen = lib.mkDefault [
        "0.0.0.0:22"
        "[::]:22"
      ];
      roster = lib.mkDefault "/run/barnraiser/roster.json";
      state-dir = lib.mkDefault "/var/lib/barnraiser";
      systems = lib.mkDefault [ pkgs.stdenv.hostPlatform.system ];
      # The state directory of a NixOS machine survives a reboot. One that mounts a tmpfs there says "none".
      store.durability = lib.mkDefault "flush";
      sandbox = {
        backend = lib.mkDefault "kvm";
        kernel = lib.mkDefault "${cfg.guestDirectory}/vmlinux";
        initrd = lib.mkDefault "${cfg.guestDirectory}/initrd";
        guest = lib.mkDefault "${cfg.guestDirectory}/guest";
        shell = lib.mkDefault "${cfg.guestDirectory}/busybox";
        cgroup = lib.mkDefault "/sys/fs/cgroup/builds.slice/barnraiser-builds.service";
      };
      network.passt = lib.mkDefault "${pkgs.passt}/bin/passt";
    };
    environment.etc = {
      "builder-agent.toml".source = settings;
      "barnraiser/roster.conf".text = ''
        ROSTER_REPO=${lib.escapeShellArg cfg.roster.repository}
        ROSTER_BRANCH=${lib.escapeShellArg cfg.roster.branch}
        ROSTER_HOST=${lib.escapeShellArg cfg.roster.host}
        ROSTER_WEBHOOK=${lib.escapeShellArg cfg.roster.webhook.listen}
        ROSTER_FALLBACK=${if cfg.roster.fallback then "yes" else "no"}
      '';
    }
    # The names that roster-sync looks for.
    // lib.mapAttrs' (name: source: lib.nameValuePair "barnraiser/${name}" { inherit source; }) (
      lib.filterAttrs (_: source: source != null) {
        allowed-signers = cfg.roster.allowedSigners;
        merge-signers = cfg.roster.mergeSigners;
        gpg-keyring = cfg.roster.gpgKeyring;
        merge-gpg-keyring = cfg.roster.mergeGpgKeyring;
        known-hosts = cfg.roster.knownHosts;
      }
    );
    users.users.barnraiser-roster = {
      isSystemUser = true;
      group = "barnraiser-roster";
    };
    users.groups.barnraiser-roster = { };
    users.users.barnraiser-mirrors = {
      isSystemUser = true;
      group = "barnraiser-mirrors";
    };
    users.groups.barnraiser-mirrors = { };
    boot.kernelModules = [
      "kvm-amd"
      "kvm-intel"
    ];
    networking.firewall.allowedTCPPorts = [ 22 ];
    systemd.packages = [ units ];
    systemd.services.builder-agent = {
      wantedBy = [ "multi-user.target" ];
      # Builds go on under the new agent (docs/design/restart.md). Another `state-dir` needs a restart by hand.
      reloadIfChanged = true;
      restartTriggers = [ settings ];
      path = [ pkgs.bubblewrap ];
      serviceConfig.StateDirectory = "barnraiser";
    };
    systemd.services.barnraiser-firewall = {
      path = [ pkgs.nftables ];
      reloadIfChanged = true;
      restartTriggers = [ settings ];
    };
    # The path of `true` in it changes with every update. Stopped, it would take the builds and the agent along.
    systemd.services.barnraiser-builds.restartIfChanged = false;
    systemd.services.barnraiser-roster = {
      path = tools;
      serviceConfig.LoadCredential = roster-key;
    };
    systemd.services.barnraiser-webhook = lib.mkIf (cfg.roster.webhook.secretFile != null) {
      path = tools;
      wantedBy = [ "multi-user.target" ];
      # The image gets the secret from the machine's manager, and starts the unit only then.
      unitConfig.ConditionCredential = [ "" ];
      serviceConfig.LoadCredential = roster-key ++ [
        "barnraiser.webhook-secret:${cfg.roster.webhook.secretFile}"
      ];
    };
    systemd.services.barnraiser-mirrors = {
      wantedBy = [ "multi-user.target" ];
      restartTriggers = [ settings ];
      path = [
        pkgs.git
        pkgs.openssh
      ];
      serviceConfig = {
        InaccessiblePaths = [
          "-/persist"
          "-/var/lib/barnraiser"
        ];
        PrivateTmp = true;
        ProtectHome = true;
      };
    };
    systemd.paths.barnraiser-mirrors.wantedBy = [ "multi-user.target" ];
    systemd.timers.barnraiser-roster.wantedBy = [ "timers.target" ];
    systemd.paths.barnraiser-sync.wantedBy = [ "multi-user.target" ];
  };
}

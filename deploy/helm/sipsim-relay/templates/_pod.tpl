{{/* What every pod of the chart has in common: nobody's rights, nobody's token. */}}
{{- define "relay.podBasics" -}}
serviceAccountName: {{ include "relay.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "relay.containerBasics" -}}
image: {{ include "relay.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end -}}

{{/* Directories of whole Secrets, never subPath: the kubelet then exchanges them when they change, and the relay reads them anew. */}}
{{- define "relay.volumes" -}}
- name: config
  configMap:
    name: {{ include "relay.fullname" . }}
    defaultMode: 0444
{{- range $name, $_ := include "relay.accounts" . | fromJson }}
{{- with get ($.Values.accountSecrets | default dict) $name }}
- name: account-{{ $name | replace "_" "-" }}
  secret:
    secretName: {{ .secretName }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- range $name, $secret := .Values.mountedSecrets }}
- name: secret-{{ $name | replace "_" "-" }}
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "relay.volumeMounts" -}}
- name: journal
  mountPath: /var/lib/sipsim-relay
- name: config
  mountPath: /etc/sipsim-relay/config
  readOnly: true
{{- range $name, $_ := include "relay.accounts" . | fromJson }}
{{- if get ($.Values.accountSecrets | default dict) $name }}
- name: account-{{ $name | replace "_" "-" }}
  mountPath: /etc/sipsim-relay/accounts/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}
{{- range $name, $_ := .Values.mountedSecrets }}
- name: secret-{{ $name | replace "_" "-" }}
  mountPath: /etc/sipsim-relay/secrets/{{ $name }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A pod that sends one signed `test` event. Takes a list: the root, the URL, further arguments. */}}
{{- define "relay.testEventPod" -}}
{{- $root := index . 0 -}}
{{- $account := include "relay.testAccount" $root -}}
{{- $secret := get ($root.Values.accountSecrets | default dict) $account -}}
{{- include "relay.podBasics" $root }}
restartPolicy: Never
containers:
  - name: simulate
    {{- include "relay.containerBasics" $root | nindent 4 }}
    args:
      - simulate
      - --to
      - {{ index . 1 | quote }}
      - --secret-file
      - /etc/sipsim-relay/accounts/{{ $account }}/{{ $secret.key | default "sipsim" }}
      - --event
      - test
      - --count
      - "1"
      {{- range index . 2 }}
      - {{ . | quote }}
      {{- end }}
    resources:
      requests:
        cpu: 10m
        memory: 32Mi
      limits:
        memory: 64Mi
    volumeMounts:
      - name: account
        mountPath: /etc/sipsim-relay/accounts/{{ $account }}
        readOnly: true
      {{- with $root.Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: account
    secret:
      secretName: {{ $secret.secretName }}
      defaultMode: 0440
  {{- with $root.Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

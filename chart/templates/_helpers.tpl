{{/* The name that everything begins with: the release's, if it tells what it is. */}}
{{- define "kagami.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "kagami" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-kagami" (.Release.Name | trunc 45 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* What identifies a process' Pods. Takes a list: the root, the process (webhook or companion). */}}
{{- define "kagami.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: kagami
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of everything that belongs to a process; takes the same list. */}}
{{- define "kagami.labels" -}}
{{ include "kagami.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
{{- end -}}

{{/* Labels of what belongs to Kagami as a whole. */}}
{{- define "kagami.commonLabels" -}}
app.kubernetes.io/name: kagami
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "kagami.image" -}}
{{- $image := .Values.image -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{/* Namespaces whose Pods are never touched, as a JSON list. */}}
{{- define "kagami.leftAlone" -}}
{{- concat (list "kube-system" .Release.Namespace) .Values.leftAlone | uniq | toJson -}}
{{- end -}}

{{/* The webhook configuration's name. The API server calls webhooks in the order of these names. */}}
{{- define "kagami.webhookConfiguration" -}}
{{- (.Values.webhookConfiguration).name | default (printf "zz-%s" (include "kagami.fullname" .)) -}}
{{- end -}}

{{/* The security context of all Pods. OpenShift refuses numbers that it did not choose itself. */}}
{{- define "kagami.podSecurityContext" -}}
{{- $context := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- $choice := .Values.userAndGroup | default "auto" -}}
{{- $openshift := .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- if or (eq $choice "fixed") (and (eq $choice "auto") (not $openshift)) -}}
{{- $context = merge $context (dict "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $context (deepCopy (.Values.podSecurityContext | default dict))) -}}
{{- end -}}

{{/* The mode of files of Secrets. Without a group of the volumes' own they belong to root alone: everybody in the
     container may read them then. 288 is 0440 and 292 is 0444, which YAML 1.2 would read as 440 and 444. */}}
{{- define "kagami.secretMode" -}}
{{- $context := include "kagami.podSecurityContext" . | fromYaml -}}
{{- ternary 288 292 (hasKey $context "fsGroup") -}}
{{- end -}}

{{/* A new replica is ready before an old one goes; on the network of the nodes it waits for an old one's port. */}}
{{- define "kagami.rollingUpdate" -}}
{{- if .Values.hostNetwork -}}
{maxSurge: 0, maxUnavailable: 1}
{{- else -}}
{maxSurge: 1, maxUnavailable: 0}
{{- end -}}
{{- end -}}

{{/* What the Pods of both processes have in common; takes the same list as kagami.labels. */}}
{{- define "kagami.podSpec" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "kagami.fullname" $root }}-{{ index . 1 }}
automountServiceAccountToken: true
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
topologySpreadConstraints:
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- include "kagami.selector" $ | nindent 6 }}
{{- end }}
{{- if $root.Values.hostNetwork }}
hostNetwork: true
{{- end }}
{{- with $root.Values.dnsPolicy | default (ternary "ClusterFirstWithHostNet" "" (eq (toString $root.Values.hostNetwork) "true")) }}
dnsPolicy: {{ . }}
{{- end }}
{{- with $root.Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.hostAliases }}
hostAliases:
{{- toYaml . | nindent 0 }}
{{- end }}
securityContext:
  {{- include "kagami.podSecurityContext" $root | nindent 2 }}
{{- end -}}

{{/* What the containers of both processes have in common: image, probes, rights. */}}
{{- define "kagami.container" -}}
image: {{ include "kagami.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
- name: KAGAMI_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  timeoutSeconds: 3
securityContext:
  {{- $context := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) }}
  {{- toYaml (mergeOverwrite $context (deepCopy (.Values.securityContext | default dict))) | nindent 2 }}
{{- end -}}

{{/* How many stuck Pods a second are turned; 0 where none is. */}}
{{- define "kagami.rescues" -}}
{{- $rescue := .Values.rescue | default dict -}}
{{- ternary ($rescue.perSecond | default 10) 0 (eq (toString $rescue.enabled) "true") -}}
{{- end -}}

{{/* The registries that stuck Pods may be turned forward to, as a list in JSON: those of the mirrors that the chart makes,
and more. As they are written: so images name them. */}}
{{- define "kagami.registries" -}}
{{- $rescue := .Values.rescue | default dict -}}
{{- $registries := list -}}
{{- range $rescue.registries | default list -}}
{{- $registries = append $registries . -}}
{{- end -}}
{{- range $name, $spec := .Values.mirrors | default dict -}}
{{- with $spec -}}
{{- with .registry -}}
{{- $registries = append $registries . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $registries | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* Whether the logins of mirrors are placed in the namespaces that they serve; "true" or "false". */}}
{{- define "kagami.placesPullSecrets" -}}
{{- $pullSecrets := .Values.pullSecrets | default dict -}}
{{- eq (toString $pullSecrets.enabled) "true" -}}
{{- end -}}

{{/* Whether Pods that are stuck on an image volume may be evicted. */}}
{{- define "kagami.evicts" -}}
{{- $rescue := .Values.rescue | default dict -}}
{{- and (ne (include "kagami.rescues" .) "0") (eq (toString $rescue.deletePods) "true") -}}
{{- end -}}
